"""The command `choose`: which of a method's tries is run on test examples, and the record of it."""
