"""Floor 4: what a person sees. Diagnostics import events; nobody imports them."""
