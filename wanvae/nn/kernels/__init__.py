"""How layers are computed: the same values, by the fastest algorithm on each device.

The table in ``dispatch`` says which function runs where. Each other file holds the functions of one
operation.
"""
