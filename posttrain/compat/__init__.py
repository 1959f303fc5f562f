"""Every use of a private part of another library: one function each, with the upstream version and the reason."""
