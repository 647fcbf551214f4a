"""What each task of a finished run changed: the command `snapshot`."""
