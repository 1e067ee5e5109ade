//! Checks at start that a server keeps conditions: some ignore them, and overwrite.

use super::super::exchange::unusable;
use super::super::{DocumentsError, drawn};
use super::object::Object;
use super::{Only, S3Documents, Version};

impl S3Documents {
    /// Fails unless a write was refused because of its condition.
    fn must_be_lost<T>(
        &self,
        written: Result<T, DocumentsError>,
        header: &str,
    ) -> Result<(), DocumentsError> {
        match written {
            Err(DocumentsError::Conflict) => Ok(()),
            Ok(_) => {
                let host = &self.place.host;
                let ignored =
                    format!("{host} ignores {header}: two machines could both order a certificate");
                Err(unusable(ignored))
            }
            Err(error) => Err(error),
        }
    }

    /// Checks the conditions of writes by the object `key`, which does not exist.
    pub(super) async fn check_conditions(&self, key: &str) -> Result<(), DocumentsError> {
        let content = Some(&b"probe"[..]);
        let Version(first) = self.put(key, content, Only::IfAbsent).await?;
        let again = self.put(key, content, Only::IfAbsent).await;
        self.must_be_lost(again, "If-None-Match")?;
        let Version(second) = self
            .put(key, content, Only::If(&first))
            .await
            .map_err(|error| match error {
                DocumentsError::Conflict => {
                    unusable("it refuses an If-Match with the ETag that it gave".to_owned())
                }
                error => error,
            })?;
        let stale = self.put(key, content, Only::If(&first)).await;
        self.must_be_lost(stale, "If-Match")?;
        let read = self.object(key).await?;
        let (Some((Object::Stored(_), tag)), false) = (read, first == second) else {
            let hidden = "it does not show an object that it has stored";
            return Err(unusable(hidden.to_owned()));
        };
        if tag != second {
            let changed = "the ETag of an object changes without a write";
            return Err(unusable(changed.to_owned()));
        }
        Ok(())
    }

    /// Whether the server keeps a condition on a DELETE, by an object made for that.
    pub(super) async fn keeps_deletes(&self) -> bool {
        let key = format!("probe/{}", drawn());
        let made = self.put(&key, Some(b"probe"), Only::IfAbsent).await;
        let stale = self.delete(&key, Some(Only::If("0"))).await;
        let _ = self.delete(&key, None).await;
        made.is_ok() && matches!(stale, Err(DocumentsError::Conflict))
    }
}
