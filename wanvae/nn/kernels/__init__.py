"""How layers are computed: the same values, by the way that is fastest on each device."""
