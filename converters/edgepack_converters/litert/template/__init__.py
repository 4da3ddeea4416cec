"""What LiteRT-LM makes of a chat template, found out at export."""
