"""What commands measured, as they write it and read it back."""
