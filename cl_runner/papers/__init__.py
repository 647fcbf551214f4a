"""The command `table`: the published tables of papers, and what runs measured beside them."""
