"""What every method stands on, and a room per method with what only this method uses."""
