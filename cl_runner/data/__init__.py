"""Examples: the tasks of an order, the sources they are read from, the generated benchmark."""
