use runtime::lifecycle::{self, About};

fn main() {
    let about =
        About { name: "gateway", version: gateway::BUILD, about: "HTTP, the page and WebRTC of kinemesh" };
    lifecycle::main(about, gateway::run)
}
