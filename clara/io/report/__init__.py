"""A report as data, written as HTML, Markdown and figures."""
