"""The held-out suite: networks of many families with random shortcuts, their exact effects by rendering, and metrics of
what a tool finds in them."""
