"""How layers are computed: the same values, by the way that is fastest on each device.

``dispatch`` has the table that says what runs where. The other files hold what the table names, one
operation a file.
"""
