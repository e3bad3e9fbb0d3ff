//! What is served: metrics and health for everyone who can reach the port, status for those whom
//! the socket admits.

use std::sync::Arc;
use std::time::Instant;

use axum::extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::control::SharedRates;
use crate::metrics;
use crate::status::Status;
use crate::vitals::Vitals;

/// The path of [`Status`] on the control socket.
pub(crate) const STATUS_PATH: &str = "/v1/status";

/// What the routes read.
pub(crate) struct State {
    pub(crate) vitals: Arc<Vitals>,
    registry: Registry,
    rates: SharedRates,
    runtime: &'static str,
}

impl State {
    pub(crate) fn new(vitals: Arc<Vitals>, runtime: &'static str) -> Self {
        let registry = metrics::registry(Arc::clone(&vitals));
        Self {
            vitals,
            registry,
            rates: SharedRates::default(),
            runtime,
        }
    }

    /// Takes the totals that rates are made from.
    pub(crate) fn sample(&self, now: Instant) {
        let relayed = self.vitals.relayed();
        self.rates.with(|window| window.sample(now, relayed));
    }

    fn status(&self) -> Status {
        let rates = self.rates.with(|window| window.rates());
        Status::new(&self.vitals, rates, self.runtime)
    }
}

type Shared = extract::State<Arc<State>>;

/// Metrics and health.
pub(crate) fn observe(state: Arc<State>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(state)
}

/// Status.
pub(crate) fn control(state: Arc<State>) -> Router {
    Router::new()
        .route(STATUS_PATH, get(status))
        .with_state(state)
}

async fn metrics_text(extract::State(state): Shared) -> Response {
    match metrics::render(&state.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// An answer about health.
#[derive(Serialize)]
struct Health {
    ok: bool,
    reasons: Vec<&'static str>,
}

impl IntoResponse for Health {
    fn into_response(self) -> Response {
        let code = if self.ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (code, Json(self)).into_response()
    }
}

/// Whether a restart would help.
async fn livez(extract::State(state): Shared) -> Health {
    let ok = state.vitals.is_alive();
    Health {
        ok,
        reasons: if ok {
            vec![]
        } else {
            vec!["a shard has ended"]
        },
    }
}

/// Whether new allocations can be made.
async fn readyz(extract::State(state): Shared) -> Health {
    let reasons = state.vitals.unready();
    Health {
        ok: reasons.is_empty(),
        reasons,
    }
}

async fn status(extract::State(state): Shared) -> Json<Status> {
    Json(state.status())
}
