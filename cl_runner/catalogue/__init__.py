"""The command `methods`: what the methods are, from their classes and files."""
