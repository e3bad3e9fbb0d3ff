use proptest::prelude::*;

use super::*;

fn wish(demand: u64, weight: u32) -> Wish {
    Wish {
        demand,
        weight,
        floor: 0,
        ceiling: u64::MAX,
    }
}

fn taken(level: &Level, wish: &Wish) -> u64 {
    level.limit(wish).min(wish.most())
}

/// Pours what there is drop by drop, each to whoever has least for its weight and wants more.
fn poured(capacity: u64, wishes: &[Wish]) -> Vec<u64> {
    let mut taken: Vec<u64> = wishes.iter().map(Wish::least).collect();
    let mut left = capacity.saturating_sub(taken.iter().sum());
    while left > 0 {
        let thirsty = (0..wishes.len()).filter(|&n| taken[n] < wishes[n].most());
        let Some(next) = thirsty.min_by(|&a, &b| {
            let level = |n: usize, other: usize| taken[n] * u64::from(wishes[other].weight);
            level(a, b).cmp(&level(b, a))
        }) else {
            break;
        };
        taken[next] += 1;
        left -= 1;
    }
    taken
}

fn wishes(most: usize) -> impl Strategy<Value = Vec<Wish>> {
    let ceiling = prop_oneof![Just(u64::MAX), 1..500_u64];
    let wish =
        (0..500_u64, 1..=8_u32, 0..20_u64, ceiling).prop_map(|(demand, weight, floor, ceiling)| {
            Wish {
                demand,
                weight,
                floor: floor.min(ceiling),
                ceiling,
            }
        });
    proptest::collection::vec(wish, 1..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn shares_are_those_of_water_poured_drop_by_drop(
        wishes in wishes(20), capacity in 0..3000_u64,
    ) {
        let expected = poured(capacity, &wishes);
        match fair_level(capacity, &wishes) {
            None => prop_assert!(wishes.iter().zip(&expected).all(|(w, got)| w.most() == *got)),
            Some(level) => for (wish, expected) in wishes.iter().zip(&expected) {
                // A drop lifts one of weight 1 by a whole step; what is poured stops anywhere within it.
                let got = taken(&level, wish);
                let step = u64::from(wish.weight);
                prop_assert!(got.abs_diff(*expected) <= step, "{got} for {expected}: {wish:?}");
            },
        }
    }

    #[test]
    fn all_that_there_is_is_given_and_no_more(
        wishes in wishes(200),
        scale in 1..1_000_000_000_u64,
        capacity in 0..30_000_u64,
    ) {
        let big = |wish: &Wish| Wish {
            demand: wish.demand * scale,
            floor: wish.floor * scale,
            ceiling: wish.ceiling.saturating_mul(scale),
            ..*wish
        };
        let wishes: Vec<_> = wishes.iter().map(big).collect();
        let capacity = capacity * scale;
        let sum = |each: &dyn Fn(&Wish) -> u64| -> u64 { wishes.iter().map(each).sum() };
        let (least, most) = (sum(&Wish::least), sum(&Wish::most));
        match fair_level(capacity, &wishes) {
            None => prop_assert!(most <= capacity),
            Some(level) => {
                let given = sum(&|wish| taken(&level, wish));
                let exact = capacity.max(least);
                prop_assert!(given <= exact && exact - given <= wishes.len() as u64);
                prop_assert!(wishes.iter().all(|wish| level.limit(wish) <= wish.ceiling));
                prop_assert!(wishes.iter().all(|wish| level.limit(wish) >= wish.floor));
            }
        }
    }
}

#[test]
fn parts_are_in_proportion_to_weights() {
    let wishes = [wish(1_000, 4), wish(1_000, 2), wish(1_000, 1)];
    let level = fair_level(700, &wishes).unwrap();
    assert_eq!(wishes.map(|wish| level.limit(&wish)), [400, 200, 100]);
}

#[test]
fn what_one_does_not_want_goes_to_the_others_by_weight() {
    let wishes = [wish(50, 4), wish(1_000, 2), wish(1_000, 1)];
    let level = fair_level(650, &wishes).unwrap();
    assert_eq!(wishes.map(|wish| taken(&level, &wish)), [50, 400, 200]);
    assert_eq!(
        level.limit(&wishes[0]),
        800,
        "it may take its part without asking"
    );
}

#[test]
fn floors_and_ceilings_hold() {
    let floor = Wish {
        floor: 300,
        ..wish(1_000, 1)
    };
    let ceiling = Wish {
        ceiling: 100,
        ..wish(1_000, 4)
    };
    let level = fair_level(600, &[floor, ceiling, wish(1_000, 1)]).unwrap();
    assert_eq!((level.limit(&floor), level.limit(&ceiling)), (300, 100));
    assert_eq!(level.limit(&wish(1_000, 1)), 200);
}

#[test]
fn floors_that_take_more_than_there_is_are_all_that_is_given() {
    let wishes = [Wish {
        floor: 80,
        ..wish(100, 4)
    }; 3];
    let level = fair_level(100, &wishes).unwrap();
    assert_eq!(level.limit(&wishes[0]), 80);
}

#[test]
fn where_there_is_enough_nobody_is_limited() {
    assert_eq!(fair_level(100, &[wish(50, 1), wish(50, 4)]), None);
    assert_eq!(fair_level(0, &[]), None);
    assert!(fair_level(99, &[wish(50, 1), wish(50, 4)]).is_some());
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let all = vec![wish(u64::MAX, u32::MAX); 1 << 16];
    let level = fair_level(u64::MAX, &all).unwrap();
    assert_eq!(level.limit(&all[0]), u64::MAX >> 16);
}
