"""Tables, figures and the page of finished fits, from files alone. Loads no torch."""
