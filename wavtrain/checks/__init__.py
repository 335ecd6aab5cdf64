"""What a careful colleague would say, before the run and while it goes on."""
