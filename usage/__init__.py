"""What calls took and cost: `flask usage` and the price list."""
