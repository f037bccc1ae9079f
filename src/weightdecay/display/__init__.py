"""What people read, without torch and rules: tables, records, numbers, figures, and files written whole or not at all."""
