"""What bench does: cases, what they run on, how they are timed and shown."""
