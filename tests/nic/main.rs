//! Tier: root. The box's NICs: VLAN interfaces, the next hop of steered frames, link loss that is
//! carried forward, and the findings of the doctor.

mod admin;
mod doctor;
mod link_loss;
mod next_hop;
mod tagged_hop;
mod vlan;
