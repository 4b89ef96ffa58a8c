// SPDX-License-Identifier: Apache-2.0
//! How a body is declared: its fields stand once, and layout, decoding, test samples and byte table follow from them.

/// Declares structs whose fields follow each other in the payload in the order written.
macro_rules! records {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Field for $name {
            const LAYOUT: &'static str = stringify!($($field: $type),*);
            fn put(&self, out: &mut Vec<u8>) { $(self.$field.put(out);)* }
            fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
                Ok(Self { $($field: Field::take(from)?,)* })
            }
        }

        #[cfg(test)]
        impl crate::sample::Sample for $name {
            fn sample(source: &mut crate::sample::Source) -> Self {
                Self { $($field: crate::sample::Sample::sample(source),)* }
            }
        }
    )*

        /// Every body with its fields, for the byte table.
        #[cfg(test)]
        pub(crate) const RECORDS: &[(&str, &str)] = &[$((stringify!($name), <$name as Field>::LAYOUT),)*];
    };
}

/// Declares enums that travel as one byte.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident ($what:literal) {
        $($(#[$choice_doc:meta])* $choice:ident = $value:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$choice_doc])* $choice = $value,)* }

        impl $name {
            const ALL: &[Self] = &[$(Self::$choice,)*];
        }

        impl Field for $name {
            const LAYOUT: &'static str = concat!($($value, " ", stringify!($choice), "; ",)*);
            fn put(&self, out: &mut Vec<u8>) { out.push(*self as u8); }
            fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
                let value = u8::take(from)?;
                let largest = Self::ALL.last().map_or(0, |last| *last as u8);
                Self::ALL.iter().copied().find(|choice| *choice as u8 == value)
                    .ok_or(FieldError::Tag { what: $what, value, largest })
            }
        }

        #[cfg(test)]
        impl crate::sample::Sample for $name {
            fn sample(source: &mut crate::sample::Source) -> Self {
                Self::ALL[source.below(Self::ALL.len())]
            }
        }
    )*

        /// Every choice with its values, for the byte table.
        #[cfg(test)]
        pub(crate) const CHOICES: &[(&str, &str)] = &[$((stringify!($name), <$name as Field>::LAYOUT),)*];
    };
}

pub(crate) use {choices, records};
