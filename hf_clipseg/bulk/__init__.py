"""Many pictures: a stream that keeps every core busy, tables that go on where a run was killed, and rows for Ray Data."""
