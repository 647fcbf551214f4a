"""Examples: the tasks of an order, the sources they are read from, the generated benchmark."""

#: task.<name>.convert -> file:function.
CONVERTERS = {
    "squad": "converters:squad",
    "multiple_choice": "converters:multiple_choice",
    "marked_turns": "converters:marked_turns",
}
