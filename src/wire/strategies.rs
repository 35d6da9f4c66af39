//! Arbitrary valid values of every message, and the rule that each reads back what it says.

use proptest::collection::btree_map;
use proptest::collection::btree_set;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::BlobHash;
use crate::ids::BootSeq;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RowsHash;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::wire::card::ModelCard;
use crate::wire::commitment::Commitment;
use crate::wire::control::Begins;
use crate::wire::control::Break;
use crate::wire::control::Commits;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::Feed;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::Offer;
use crate::wire::control::Reconfigure;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::SamplingParameters;
use crate::wire::control::SettleRefusal;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;
use crate::wire::control::TailOffer;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditHeader;
use crate::wire::credit::CreditLine;
use crate::wire::credit::hash_lines;
use crate::wire::credit::sum_lines;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;
use crate::wire::fetch::MAX_PIECE;
use crate::wire::fetch::MAX_TENSOR;
use crate::wire::gossip::Gossip;
use crate::wire::hello::Hello;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;
use crate::wire::profile::Device;
use crate::wire::profile::DeviceKind;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;
use crate::wire::profile::MAX_VALID_FOR;
use crate::wire::profile::Profile;
use crate::wire::profile::RoundTrip;
use crate::wire::profile::Stored;
use crate::wire::samples;
use crate::wire::signed::Signed;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

fn peer() -> impl Strategy<Value = PeerKey> {
    any::<[u8; 32]>().prop_map(PeerKey::new)
}

fn model() -> impl Strategy<Value = ModelId> {
    any::<[u8; 32]>().prop_map(ModelId::new)
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId::new)
}

fn token() -> impl Strategy<Value = Token> {
    any::<u32>().prop_map(Token)
}

fn range() -> impl Strategy<Value = UnitRange> {
    (0..u16::MAX)
        .prop_flat_map(|start| (Just(start), start + 1..=u16::MAX))
        .prop_map(|(start, end)| UnitRange::new(start, end).unwrap())
}

/// Stages of one to five units.
fn chain() -> impl Strategy<Value = Chain> {
    vec((peer(), 1..=5_u16), 1..20).prop_map(|stages| {
        let mut end = 0;
        let mut tile = |(peer, count)| {
            end += count;
            Stage { peer, range: UnitRange::new(end - count, end).unwrap() }
        };
        let stages: Vec<_> = stages.into_iter().map(&mut tile).collect();
        Chain::new(stages, end).unwrap()
    })
}

fn hello() -> impl Strategy<Value = Hello> {
    (1..=u32::MAX)
        .prop_flat_map(|min| (Just(min), min..=u32::MAX, any::<u64>(), "[ -~]{0,64}"))
        .prop_map(|(min, max, features, software)| Hello { min, max, features, software })
}

fn holding() -> impl Strategy<Value = Holding> {
    let state = select(vec![HoldingState::Intended, HoldingState::Loading, HoldingState::Ready]);
    (model(), range(), state, any::<u64>()).prop_map(|(model, range, state, span)| Holding {
        model,
        range,
        state,
        per_unit: Span(span),
    })
}

/// Small enough that nothing is left out.
fn profile() -> impl Strategy<Value = Profile> {
    let kind = select(vec![DeviceKind::Cpu, DeviceKind::Cuda, DeviceKind::Metal]);
    let device = (kind, any::<u64>()).prop_map(|(kind, memory)| Device { kind, memory: Bytes(memory) });
    let trip = (any::<[u8; 8]>(), any::<u64>()).prop_map(|(neighbour, span)| RoundTrip { neighbour, span: Span(span) });
    let order = (any::<u64>(), any::<u64>()).prop_map(|(boot, seq)| BootSeq { boot, seq });
    let numbers = (order, 0..=MAX_VALID_FOR.0, any::<u64>(), any::<u64>(), any::<u16>(), any::<u32>());
    let stored = (model(), range()).prop_map(|(model, range)| Stored { model, range });
    let ranges = (vec(holding(), 0..4), vec(stored, 0..2));
    let lists = (vec(device, 0..3), vec(select(WeightFormat::ALL), 0..12), ranges, vec(trip, 0..3));
    (numbers, lists, "[ -~]{0,32}", any::<u16>(), any::<u64>(), any::<bool>()).prop_map(
        |(numbers, lists, arithmetic, sessions, queue, draining)| {
            let (order, valid_for, one, other, cores, cpu_features) = numbers;
            let (devices, formats, (holdings, stored), round_trips) = lists;
            Profile {
                peer: samples::identity().peer(),
                order,
                valid_for: Span(valid_for),
                memory: Bytes(one.max(other)),
                memory_free: Bytes(one.min(other)),
                cores,
                cpu_features,
                devices,
                formats,
                arithmetic,
                holdings,
                sessions,
                queue: Span(queue),
                round_trips,
                draining,
                stored,
            }
        },
    )
}

fn card() -> impl Strategy<Value = ModelCard> {
    let texts = ("[ -~]{0,32}", "[ -~]{0,16}", "[ -~äöü]{0,48}");
    (any::<u64>(), any::<u64>(), 0..=MAX_VALID_FOR.0, model(), texts, 1..=u16::MAX, any::<u64>(), any::<u32>())
        .prop_map(|(boot, seq, valid_for, model, (architecture, quantisation, title), units, bytes, context)| {
            ModelCard {
                peer: samples::identity().peer(),
                order: BootSeq { boot, seq },
                valid_for: Span(valid_for),
                model,
                architecture,
                units,
                bytes: Bytes(bytes),
                quantisation,
                context,
                title,
            }
        })
}

fn entry() -> impl Strategy<Value = CreditEntry> {
    let line = (peer(), range(), 0..=u64::MAX / 300, 1..=1_000_000_u32)
        .prop_map(|(stage, range, work, difficulty)| CreditLine { stage, range, work: Mflop(work), difficulty });
    (vec(line, 1..9), 1..=u64::MAX, any::<[u8; 32]>(), session(), model(), any::<u32>()).prop_map(
        |(lines, sequence, previous, session, model, positions)| {
            let header = CreditHeader {
                requester: samples::identity().peer(),
                sequence,
                previous,
                session,
                model,
                positions: Position(positions),
                lines: hash_lines(&lines),
                total: sum_lines(&lines).unwrap(),
            };
            CreditEntry::seal(&header, lines, &samples::identity(), samples::network()).unwrap()
        },
    )
}

fn gossip() -> impl Strategy<Value = Gossip> {
    let (identity, network) = (samples::identity(), samples::network());
    let other = samples::identity();
    prop_oneof![
        profile().prop_map(move |profile| Gossip::Profile(Signed::seal(&profile, &identity, network).unwrap())),
        card().prop_map(move |card| Gossip::Card(Signed::seal(&card, &other, network).unwrap())),
        entry().prop_map(Gossip::Credit),
    ]
}

fn parameters() -> impl Strategy<Value = SamplingParameters> {
    let cuts = (0.0_f32..=100.0, any::<u32>(), 0.001_f32..=1.0, 0.0_f32..=1.0);
    let penalties = (0.001_f32..=10.0, -2.0_f32..=2.0, -2.0_f32..=2.0, any::<u32>());
    let bias = btree_map(any::<u32>(), -100.0_f32..=100.0, 0..20);
    (cuts, penalties, bias, option::of(0..=20_u8), any::<u64>()).prop_map(|(cuts, penalties, bias, logprobs, seed)| {
        SamplingParameters {
            temperature: cuts.0,
            top_k: cuts.1,
            top_p: cuts.2,
            min_p: cuts.3,
            repetition_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            penalty_window: penalties.3,
            logit_bias: bias.into_iter().map(|(token, value)| (Token(token), value)).collect(),
            logprobs,
            seed,
        }
    })
}

fn tail_offer() -> impl Strategy<Value = TailOffer> {
    let ends = btree_set(any::<u32>(), 0..16);
    (parameters(), vec(token(), 1..40), any::<bool>(), 1..=u32::MAX, ends).prop_map(
        |(parameters, prompt, looks_back, max_tokens, ends)| TailOffer {
            parameters,
            prompt_length: Position(u32::try_from(prompt.len()).unwrap()),
            history: if looks_back { prompt } else { Vec::new() },
            max_tokens,
            end_of_generation: ends.into_iter().map(Token).collect(),
        },
    )
}

fn offer() -> impl Strategy<Value = Offer> {
    let parts = (session(), any::<u32>(), model(), 1..=u32::MAX, 1..=3_600_000_000_u64, tail_offer());
    (chain(), any::<proptest::sample::Index>(), vec(any::<bool>(), 120), parts).prop_map(
        |(chain, place, rounded, (session, epoch, model, budget, expires, sampling))| {
            let stage = StageIndex(u16::try_from(place.index(chain.stages().len())).unwrap());
            let boundaries = (1..chain.units()).zip(&rounded).filter(|(_, rounded)| **rounded);
            Offer {
                session,
                epoch: Epoch(epoch),
                model,
                weights: if rounded[118] { ModelId::new([9; 32]) } else { model },
                stage,
                rounding: boundaries.map(|(boundary, _)| (boundary, WireDtype::F16)).collect(),
                budget: Position(budget),
                expires_after: Span(expires),
                sampling: (stage == chain.tail()).then_some(sampling),
                begins: if rounded[0] { Begins::Earlier } else { Begins::Here },
                commits: if rounded[119] { Commits::Yes } else { Commits::No },
                chain,
            }
        },
    )
}

fn to_stage() -> impl Strategy<Value = ToStage> {
    let last = select(vec![LastFeed::No, LastFeed::Yes]);
    let feed = (0..u32::MAX - 100, vec(token(), 1..100), last);
    prop_oneof![
        offer().prop_map(|offer| ToStage::Offer(Box::new(offer))),
        feed.prop_map(|(first, tokens, last)| ToStage::Feed(Feed { first: Position(first), tokens, last })),
        any::<u64>().prop_map(ToStage::Ping),
        entry().prop_map(|entry| ToStage::Settle(Box::new(entry))),
        reconfigure().prop_map(|newer| ToStage::Reconfigure(Box::new(newer))),
        any::<[u32; 3]>().prop_map(|[epoch, keep, next_keep]| {
            ToStage::Resume(Resume { epoch: Epoch(epoch), keep: Position(keep), next_keep: Position(next_keep) })
        }),
    ]
}

fn reconfigure() -> impl Strategy<Value = Reconfigure> {
    (chain(), any::<proptest::sample::Index>(), any::<[u32; 2]>()).prop_map(|(chain, place, [epoch, known])| {
        let stage = StageIndex(u16::try_from(place.index(chain.stages().len())).unwrap());
        Reconfigure { epoch: Epoch(epoch), chain, stage, known: Position(known) }
    })
}

fn rejoined() -> impl Strategy<Value = Rejoined> {
    (any::<u32>(), any::<[u32; 2]>(), vec(token(), 0..40)).prop_map(|(epoch, [one, other], heard)| {
        let (length, journal) = (Position(one.max(other)), Position(one.min(other)));
        Rejoined { epoch: Epoch(epoch), length, journal, heard }
    })
}

fn broken() -> impl Strategy<Value = HopBroken> {
    let how = select(vec![Break::Lost, Break::Breach]);
    (any::<u32>(), any::<u16>(), peer(), how).prop_map(|(epoch, stage, peer, how)| HopBroken {
        epoch: Epoch(epoch),
        stage: StageIndex(stage),
        peer,
        how,
    })
}

fn failure() -> impl Strategy<Value = StageFailure> {
    prop_oneof![
        (any::<u16>(), peer()).prop_map(|(stage, peer)| StageFailure::HopLost { stage: StageIndex(stage), peer }),
        (any::<u16>(), peer()).prop_map(|(stage, peer)| StageFailure::BadFrame { stage: StageIndex(stage), peer }),
        "[ -~]{0,200}".prop_map(StageFailure::Engine),
        select(vec![
            StageFailure::NonFinite,
            StageFailure::Expired,
            StageFailure::Draining,
            StageFailure::BadRequest,
            StageFailure::Stuck
        ]),
    ]
}

fn decline() -> impl Strategy<Value = Decline> {
    let reason = (1..=9).prop_map(|code| DeclineReason::from_code(code).unwrap());
    (reason, option::of(any::<u64>().prop_map(Span))).prop_map(|(reason, retry_after)| Decline { reason, retry_after })
}

fn token_out() -> impl Strategy<Value = TokenOut> {
    let finish = (1..=3).prop_map(|code| TailFinish::from_code(code).unwrap());
    let logprobs = (-1e30_f32..0.0, vec((token(), -1e30_f32..0.0), 0..=20)).prop_map(|(chosen, mut top)| {
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        TokenLogprobs { chosen, top }
    });
    (any::<u32>(), any::<u32>(), token(), option::of(finish), option::of(logprobs)).prop_map(
        |(epoch, position, token, finish, logprobs)| TokenOut {
            epoch: Epoch(epoch),
            position: Position(position),
            token,
            finish,
            logprobs,
        },
    )
}

fn report() -> impl Strategy<Value = StageReport> {
    (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(positions, payload, frames, busy)| {
        StageReport { positions: Position(positions), payload: Bytes(payload), frames, busy: Span(busy) }
    })
}

fn commitment() -> impl Strategy<Value = Signed<Commitment>> {
    let hash = || any::<[u8; 32]>().prop_map(RowsHash::new);
    let parts = (any::<u32>(), model(), range(), 1..=u32::MAX);
    (session(), parts, hash(), hash()).prop_map(|(session, (epoch, model, range, end), received, sent)| {
        let (peer, epoch, end) = (samples::identity().peer(), Epoch(epoch), Position(end));
        let commitment = Commitment { peer, session, epoch, model, range, end, received, sent };
        Signed::seal(&commitment, &samples::identity(), samples::network()).unwrap()
    })
}

fn from_stage() -> impl Strategy<Value = FromStage> {
    prop_oneof![
        Just(FromStage::Accept),
        decline().prop_map(FromStage::Decline),
        token_out().prop_map(FromStage::Token),
        any::<u64>().prop_map(FromStage::Pong),
        failure().prop_map(FromStage::Failed),
        report().prop_map(FromStage::Settled),
        select(vec![SettleRefusal::Invalid, SettleRefusal::Fork, SettleRefusal::NotStored])
            .prop_map(FromStage::NotSettled),
        any::<u64>().prop_map(|counted| FromStage::NotSettled(SettleRefusal::TooLittle { counted: Mflop(counted) })),
        rejoined().prop_map(FromStage::Rejoined),
        broken().prop_map(FromStage::HopBroken),
        Just(FromStage::Leaving),
        commitment().prop_map(|signed| FromStage::Committed(Box::new(signed))),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let dtype = select(vec![WireDtype::F32, WireDtype::F16]);
    let sample = select(vec![Sample::No, Sample::LastRow]);
    let ids = (session(), any::<u16>(), any::<u32>(), any::<u64>(), 0..u32::MAX - 100);
    (ids, 1..20_u32, 1..20_u32, dtype, sample).prop_map(|(ids, count, width, dtype, sample)| {
        let (session, stage, epoch, step, first) = ids;
        let header = FrameHeader {
            session,
            stage: StageIndex(stage),
            epoch: Epoch(epoch),
            step: Step(step),
            first: Position(first),
            count,
            dtype,
            sample,
        };
        let length = u64::from(count) * dtype.row_bytes(width);
        Frame { header, payload: vec![0x3c; usize::try_from(length).unwrap()].into() }
    })
}

fn hop_forward() -> impl Strategy<Value = HopForward> {
    let token = (session(), any::<u32>(), any::<u64>(), any::<u32>(), token()).prop_map(
        |(session, epoch, step, position, token)| TokenFrame {
            session,
            epoch: Epoch(epoch),
            step: Step(step),
            position: Position(position),
            token,
        },
    );
    prop_oneof![frame().prop_map(HopForward::Frame), token.prop_map(HopForward::Token)]
}

fn hop_back() -> impl Strategy<Value = HopBack> {
    prop_oneof![
        Just(HopBack::Opened),
        any::<u64>().prop_map(|step| HopBack::Taken(Step(step))),
        any::<u32>().prop_map(|epoch| HopBack::Fenced(Epoch(epoch))),
        (1..=6).prop_map(|code| HopBack::Refused(HopRefusal::from_code(code).unwrap())),
    ]
}

fn hop_open() -> impl Strategy<Value = HopOpen> {
    (session(), any::<u32>(), 0..u16::MAX, any::<bool>()).prop_map(|(session, epoch, from, to_driver)| HopOpen {
        session,
        epoch: Epoch(epoch),
        from: StageIndex(from),
        to: StageIndex(if to_driver { 0 } else { from + 1 }),
    })
}

fn fetch_answer() -> impl Strategy<Value = FetchAnswer> {
    prop_oneof![
        (100..=MAX_TENSOR, vec(any::<u8>(), 0..100))
            .prop_map(|(total, data)| FetchAnswer::Piece { total, data: data.into() }),
        Just(FetchAnswer::NotFound),
        Just(FetchAnswer::Busy),
    ]
}

fn shape() -> impl Strategy<Value = ModelShape> {
    let scaling = prop_oneof![
        Just(RopeScaling::None),
        (0.1_f32..64.0).prop_map(|factor| RopeScaling::Linear { factor }),
        (0.1_f32..64.0, 0.1_f32..4.0, 4.1_f32..8.0, 1..=1_u32 << 24).prop_map(
            |(factor, low_freq_factor, high_freq_factor, original_context)| RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }
        ),
        Just(RopeScaling::Tensor),
    ];
    let heads = (1..=16_u32, 1..=8_u32, 1..=64_u32);
    let sizes = (1..=1_024_u16, 1..=1_u32 << 20, 1..=1_u32 << 20, 1..=1_u32 << 21, 1..=1_u32 << 24);
    let kinds = prop_oneof![
        (select(&Architecture::ALL), Just(RopePairs::Halves)),
        Just((Architecture::Llama, RopePairs::Interleaved)),
    ];
    let options = (kinds, option::of(1..=1_u32 << 24), any::<bool>());
    (heads, sizes, scaling, 1e-7_f32..=0.1, 1.0_f32..1e9, options).prop_map(
        |((kv_heads, group, half), (blocks, width, feed_forward, vocab, context), scaling, norm_eps, base, options)| {
            let ((architecture, pairs), window, tied) = options;
            ModelShape {
                architecture,
                blocks,
                width,
                heads: kv_heads * group,
                kv_heads,
                head_dim: 2 * half,
                feed_forward,
                vocab,
                context,
                window: window.map(|window| window % context).filter(|window| *window > 0),
                norm_eps,
                rope: Rope { dimensions: 2 * half, pairs, base, scaling },
                tied,
            }
        },
    )
}

fn tensor() -> impl Strategy<Value = TensorEntry> {
    let units = btree_set(0..3_u16, 1..=3);
    (units, 1..9_u64, vec(1..9_u64, 0..=3), select(WeightFormat::ALL), any::<[u8; 32]>()).prop_map(
        |(units, blocks, mut dimensions, format, hash)| {
            dimensions.insert(0, blocks * format.block_elements());
            TensorEntry {
                name: String::new(),
                units: units.into_iter().collect(),
                bytes: format.bytes(dimensions.iter().product()).unwrap(),
                dimensions,
                format,
                hash: BlobHash::new(hash),
            }
        },
    )
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let tensors = btree_map("[a-z0-9._]{1,64}", tensor(), 1..20);
    (shape(), any::<[u8; 32]>(), tensors).prop_map(|(shape, vocabulary, tensors)| Manifest {
        shape,
        vocabulary: BlobHash::new(vocabulary),
        tensors: tensors.into_iter().map(|(name, tensor)| TensorEntry { name, ..tensor }).collect(),
        derivation: None,
    })
}

fn vocabulary() -> impl Strategy<Value = Vocabulary> {
    let kind = (1..=6_u8).prop_map(|code| TokenType::from_code(code).unwrap());
    let tokens = vec(("\\PC{0,12}", kind, -1e9_f32..1e9), 1..60);
    let flags = any::<[bool; 5]>();
    let template = option::of("\\PC{0,200}");
    (tokens, vec("[!-~]{1,4} [!-~]{1,4}", 0..20), "[a-z0-9-]{0,64}", flags, template).prop_map(
        |(tokens, merges, pre, [pairs, scored, has_bos, add_bos, add_space_prefix], chat_template)| Vocabulary {
            kind: if pairs { VocabularyKind::BytePairs { pre } } else { VocabularyKind::SentencePiece },
            types: tokens.iter().map(|token| token.1).collect(),
            scores: tokens.iter().filter(|_| scored).map(|token| token.2).collect(),
            merges: if pairs { merges } else { Vec::new() },
            bos: has_bos.then_some(Token(0)),
            add_bos,
            add_space_prefix,
            end_of_generation: vec![Token(u32::try_from(tokens.len()).unwrap() - 1)],
            tokens: tokens.into_iter().map(|token| token.0).collect(),
            chat_template,
        },
    )
}

proptest! {
    #[test]
    fn a_hello_reads_back_what_it_says(message in hello()) {
        prop_assert_eq!(Hello::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn gossip_reads_back_what_it_says(message in gossip()) {
        prop_assert_eq!(Gossip::decode(&message.encode(), samples::network()), Ok(message));
    }

    #[test]
    fn nothing_is_left_out_of_a_small_profile(message in profile()) {
        prop_assert_eq!(Profile::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn a_word_to_a_stage_reads_back_what_it_says(message in to_stage()) {
        prop_assert_eq!(ToStage::decode(&message.encode(), samples::network()), Ok(message));
    }

    #[test]
    fn a_word_from_a_stage_reads_back_what_it_says(message in from_stage()) {
        prop_assert_eq!(FromStage::decode(&message.encode(), samples::network()), Ok(message));
    }

    #[test]
    fn what_goes_down_a_hop_reads_back_what_it_says(message in hop_forward()) {
        let parts = message.encode();
        let pending = HopForward::decode_header(&parts.header).unwrap();
        prop_assert_eq!(pending.with_payload(parts.payload.unwrap_or_default()), Ok(message));
    }

    #[test]
    fn what_comes_up_a_hop_reads_back_what_it_says(message in hop_back(), open in hop_open()) {
        prop_assert_eq!(HopBack::decode(&message.encode()), Ok(message));
        prop_assert_eq!(HopOpen::decode(&open.encode()), Ok(open));
    }

    #[test]
    fn a_fetch_reads_back_what_it_says(
        answer in fetch_answer(), blob: [u8; 32], outline: bool, offset in 0..=MAX_TENSOR, length in 1..=MAX_PIECE,
    ) {
        let part = if outline { FetchPart::Outline } else { FetchPart::Data };
        let request = FetchRequest { blob: BlobHash::new(blob), part, offset, length };
        prop_assert_eq!(FetchRequest::decode(&request.encode()), Ok(request));
        prop_assert_eq!(FetchAnswer::decode(&answer.encode()), Ok(answer));
    }

    #[test]
    fn a_manifest_reads_back_what_it_says(manifest in manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn a_vocabulary_reads_back_what_it_says(vocabulary in vocabulary()) {
        prop_assert_eq!(Vocabulary::decode(&vocabulary.encode()), Ok(vocabulary));
    }
}
