"""Commands about adapters: combine, convert, resize, extract, merge, inspect, and what they share."""
