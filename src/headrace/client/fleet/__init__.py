"""A fleet as files: what the platform shall be is read out of TOML, compared with what it is, and made so."""
