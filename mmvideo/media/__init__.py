"""Files that people watch: written whole, with the recipe that made them inside."""
