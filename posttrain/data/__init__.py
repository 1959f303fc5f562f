"""From files, the Hub or the built-in demo to checked, split and counted rows."""
