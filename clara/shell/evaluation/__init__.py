"""What the evaluate command measures, and how."""
