"""What the command lines of all jobs share."""
