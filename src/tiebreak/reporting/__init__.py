"""What the report is made of: charts, tables, and what they say."""
