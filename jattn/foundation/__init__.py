"""What everything stands on: how arrays lie on a mesh of devices, and what is known of a program from its jaxpr."""
