"""A prepared corpus on disk: its form, written once and read at random places."""
