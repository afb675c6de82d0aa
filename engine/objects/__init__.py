"""Object stores: folders, S3 and memory behind one interface."""
