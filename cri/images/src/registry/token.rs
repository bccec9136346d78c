//! Authentication: the answers to a registry's challenges, and tokens from the service that it names.

use std::sync::PoisonError;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use serde::Deserialize;
use url::Url;

use super::answer::MAX_ANSWER;
use super::challenge::Challenge;
use super::client::{Registry, Server, header, network};
use super::hosts::host_of;
use crate::error::Result;

impl Registry {
    /// Answers a challenge; true when there is a new authorization to try.
    pub(super) async fn authorize(&self, server: &Server, challenges: &[Challenge]) -> Result<bool> {
        let value = if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            if server.credentials.registry_token.is_some() {
                return Ok(false);
            }
            let mut tries = self.tries();
            let token = loop {
                match self.token(server, bearer).await {
                    Err(e) if tries.again(&e).await => {}
                    other => break other?,
                }
            };
            format!("Bearer {token}")
        } else if challenges.iter().any(|c| c.scheme == "basic") {
            match server.credentials.basic_header() {
                Some(value) => value,
                None => return Ok(false),
            }
        } else {
            return Ok(false);
        };
        let value = header(&value)?;
        *server.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(true)
    }

    /// Gets a bearer token from the service that the registry names.
    async fn token(&self, server: &Server, challenge: &Challenge) -> Result<String> {
        let realm = challenge.params.get("realm").map_or("", String::as_str);
        let mut url = Url::parse(realm).ok().filter(|u| matches!(u.scheme(), "http" | "https")).ok_or_else(|| {
            network(&server.endpoint.base, "authenticate at", format!("token realm {realm:?} is no URL"))
        })?;
        let credentials = &server.credentials;
        if url.scheme() == "http"
            && server.endpoint.base.scheme() == "https"
            && !credentials.is_empty()
            && !self.is_plain(&url)
        {
            let reason = format!("token realm {realm:?} would take the credentials in clear text");
            return Err(network(&server.endpoint.base, "authenticate at", reason));
        }
        let service = challenge.params.get("service").cloned().unwrap_or_default();
        let scope = challenge.params.get("scope").cloned().unwrap_or_else(|| format!("repository:{}:pull", self.path));
        let http = if url.origin() == server.endpoint.base.origin() { &server.http } else { &self.elsewhere };
        let response = if let Some(refresh) = &credentials.identity_token {
            let form = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", &service)
                .append_pair("client_id", "gantry-cri")
                .append_pair("scope", &scope)
                .append_pair("refresh_token", refresh)
                .finish();
            let request = Request::post(url.as_str())
                .header(USER_AGENT, "gantry-cri")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            self.send(http, request, Bytes::from(form), &url).await?
        } else {
            url.query_pairs_mut().append_pair("service", &service).append_pair("scope", &scope);
            let mut request = Request::get(url.as_str()).header(USER_AGENT, "gantry-cri");
            if let Some(basic) = credentials.basic_header() {
                request = request.header(AUTHORIZATION, header(&basic)?);
            }
            self.send(http, request, Bytes::new(), &url).await?
        };
        if !response.status().is_success() {
            return Err(self.failure(response, &host_of(&url)).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = self.body(response, &host_of(&url), "token", MAX_ANSWER).await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|e| network(&url, "authenticate at", format!("the token answer is not JSON: {e}")))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            Err(network(&url, "authenticate at", "the answer holds no token".into()))
        } else {
            Ok(token)
        }
    }
}
