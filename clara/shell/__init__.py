"""Loops and entrypoints: each reads its arguments, calls io, loops over core, prints and saves."""
