"""Studies: settings in, result out, tables and arrays in the run folder."""
