"""Stock modules with fewer channels, or smaller heads, than their architecture gives them."""
