//! Real pages in a real Chromium stop counting when nobody can be looking.
