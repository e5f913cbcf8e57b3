"""What nobody sends on purpose: broken input, and things that fail."""
