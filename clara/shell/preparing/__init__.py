"""What the prepare command does with files, questions and candidates."""
