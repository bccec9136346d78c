//! Synchronous netlink: links, addresses, routes, neighbours, nf_tables and conntrack.
