"""What sees to it that ranks end together: requests to stop, the watchdog, the flight recorder, the supervisor."""
