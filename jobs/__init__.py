"""Work spread over processes and machines: the only room that knows Ray."""
