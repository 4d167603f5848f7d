//! HTTP as a client sees it.

use std::time::Duration;

use serde_json::Value;

/// Status, `Retry-After` and body of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub text: String,
}

impl Answer {
    /// # Panics
    /// If the body is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text))
    }
}

#[derive(Clone, Debug)]
pub struct Http {
    base: String,
    client: reqwest::Client,
}

impl Http {
    /// # Panics
    /// If the client cannot be built.
    #[must_use]
    pub fn new(port: u16) -> Self {
        let client =
            reqwest::Client::builder().timeout(Duration::from_secs(20)).build().expect("an HTTP client");
        Self { base: format!("http://127.0.0.1:{port}"), client }
    }

    /// # Errors
    /// If nobody answers.
    pub async fn try_get(&self, path: &str) -> Result<Answer, reqwest::Error> {
        Self::answer(self.client.get(format!("{}{path}", self.base)).send().await?).await
    }

    /// # Panics
    /// If nobody answers.
    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.expect("an answer")
    }

    /// # Panics
    /// If nobody answers.
    pub async fn bytes(&self, path: &str) -> (u16, Vec<u8>) {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.expect("an answer");
        (response.status().as_u16(), response.bytes().await.expect("a body").to_vec())
    }

    /// # Panics
    /// If nobody answers.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.client.post(format!("{}{path}", self.base)).json(body);
        Self::answer(request.send().await.expect("an answer")).await.expect("a body")
    }

    /// # Panics
    /// If nobody answers.
    pub async fn delete(&self, path: &str) -> Answer {
        let request = self.client.delete(format!("{}{path}", self.base));
        Self::answer(request.send().await.expect("an answer")).await.expect("a body")
    }

    async fn answer(response: reqwest::Response) -> Result<Answer, reqwest::Error> {
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = header.map(str::to_owned);
        Ok(Answer { status, retry_after, text: response.text().await? })
    }
}
