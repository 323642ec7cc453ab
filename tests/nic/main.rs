//! Tier: root. The box's NICs: VLAN interfaces, the next hop of steered frames, and the findings of
//! the doctor.

mod admin;
mod doctor;
mod next_hop;
mod tagged_hop;
mod vlan;
