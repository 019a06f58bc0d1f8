"""What the tests of running models ask them."""

PROMPT = "The statement"
