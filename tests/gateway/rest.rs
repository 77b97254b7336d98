//! Native REST, and events over HTTP as page and stream.
