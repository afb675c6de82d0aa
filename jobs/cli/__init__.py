"""Flags, errors, progress and outputs that the command lines of all jobs share."""
