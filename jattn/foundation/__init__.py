"""What everything stands on: how arrays lie on a mesh of devices."""
